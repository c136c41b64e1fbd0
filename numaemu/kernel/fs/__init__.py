"""kernel.fs"""
