"""The client commands of `duckmesh`; talks HTTP only."""
