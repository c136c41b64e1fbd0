"""kernel.fs.sysfs"""
