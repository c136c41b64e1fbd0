"""kernel.mm.cache"""
