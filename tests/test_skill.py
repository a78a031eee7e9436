"""A Skill on disk."""
from neuraverse.trust import verify

def test_a(tiny_skill, key_store):
    print(verify(tiny_skill.path, key_store))
