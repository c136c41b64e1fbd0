"""kernel.mm.migrate"""
