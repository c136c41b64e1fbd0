"""kernel.mm.swap"""
