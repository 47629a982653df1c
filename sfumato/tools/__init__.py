"""What reworks files and looks into data, without training: one folder for each purpose."""
