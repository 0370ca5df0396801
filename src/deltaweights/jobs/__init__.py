"""The verbs (apply, make, convert, export, check-base, inspect, download) and the one pipeline behind them."""
