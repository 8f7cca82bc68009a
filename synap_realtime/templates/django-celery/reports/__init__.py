"""Reports: their page, their routes and their job."""
