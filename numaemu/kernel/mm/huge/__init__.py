"""kernel.mm.huge"""
