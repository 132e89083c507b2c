"""What `transept doctor` finds out about an installation."""
