"""Toban (当番, "whose turn it is"): each waiting database row becomes exactly one Celery task."""
