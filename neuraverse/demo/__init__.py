"""The whole story on one seam: learn, publish, receive, check, use or improve."""
