"""kernel.include"""
