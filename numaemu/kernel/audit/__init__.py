"""`machine.check()`: looks at every structure of a machine that stands still, and raises at the first that disagrees.

A validate function for each kind of structure; its message shows both sides. A new structure brings its own part.
"""
