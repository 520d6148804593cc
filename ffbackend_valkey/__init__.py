"""The engine on Valkey: connections, function calls, and the few keys that reads and subscriptions need."""
