"""What every started process has in common: on Windows, a job object that ends it with everything it started."""
