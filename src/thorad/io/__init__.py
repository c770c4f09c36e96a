"""Files in and out: pictures, volumes and DICOM, tables, the template, and the way to the model's grid and back."""
