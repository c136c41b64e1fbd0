"""kernel.core"""
