"""Puts a service under load and says how long scans take: arrivals, clients, percentiles, the server's share, a search.

It knows no terminal, and nothing of how a scan is segmented.
"""
