"""What the commands do, from checked options to what a user sees. Only `cli` and the tests call them."""
