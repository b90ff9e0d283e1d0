"""What is given to a distillation: the teacher's source and its engines, groups of scans, and values of scans."""
