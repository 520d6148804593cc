"""What is true without a database: identifiers, states, contracts, errors, and the Backend trait."""
