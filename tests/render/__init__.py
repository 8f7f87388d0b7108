"""What every combination of answers renders."""
