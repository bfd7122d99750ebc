"""Methods for convolutions, whose factors run as chains of smaller convolutions."""
