"""What sparse training costs."""
