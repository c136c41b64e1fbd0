"""kernel.syscalls"""
