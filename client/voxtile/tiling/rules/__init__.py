"""Says where tiles lie and how they are weighed, one module for each library whose result is reproduced."""
