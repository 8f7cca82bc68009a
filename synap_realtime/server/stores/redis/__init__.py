"""A store on Redis or Valkey that several nodes share."""
