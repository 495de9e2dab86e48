"""r in little memory: products on rounded directions, piece by piece, and a few of them."""
