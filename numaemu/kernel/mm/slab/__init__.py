"""kernel.mm.slab"""
