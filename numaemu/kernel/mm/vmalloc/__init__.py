"""kernel.mm.vmalloc"""
