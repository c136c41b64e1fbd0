"""What the page allocator did and why it failed, for people: the trail of an allocation, shortages, show_mem, pageblocks."""
