"""What the commands do: from checked options to what a user sees. `cli` is their only caller but the tests."""
