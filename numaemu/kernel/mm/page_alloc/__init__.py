"""kernel.mm.page_alloc"""
