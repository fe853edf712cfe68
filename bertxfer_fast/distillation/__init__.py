"""What is matched between teacher and student, and how."""
