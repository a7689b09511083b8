"""ECO (Lee & Heo, AAAI 2024, arXiv 2312.17526): alpha schedules, objectives, the guard of the teacher."""
