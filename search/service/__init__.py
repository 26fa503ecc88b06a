"""The service: jobs over HTTP, and a page to watch and compare them."""
