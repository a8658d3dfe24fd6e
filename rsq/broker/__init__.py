"""Everything that speaks to the Redis or Valkey server."""
