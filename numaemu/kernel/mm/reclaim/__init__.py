"""kernel.mm.reclaim"""
