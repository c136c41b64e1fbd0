"""kernel.arch"""
