"""Our models under the interfaces of other libraries that need more than registering; imported only on request."""
