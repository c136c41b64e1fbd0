"""kernel.fs.proc"""
