"""The addresses of the project."""

from django.urls import path
from reports import views

urlpatterns = [
    path("", views.get_page),
    path("api/config", views.get_config),
    path("api/reports", views.create_report),
    path("api/realtime-token", views.create_token),
]
