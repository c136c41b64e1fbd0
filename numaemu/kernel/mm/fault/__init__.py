"""kernel.mm.fault"""
