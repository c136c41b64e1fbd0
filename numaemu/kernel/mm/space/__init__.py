"""kernel.mm.space"""
