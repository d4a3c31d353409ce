"""The first step of a worked solution that does not hold: expressions, equations, polynomials."""
