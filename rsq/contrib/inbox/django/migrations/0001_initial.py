from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Mark",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "scope", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("scope", models.CharField(max_length=255)),
                ("key", models.CharField(max_length=255)),
                ("processed_at", models.DateTimeField(db_index=True)),
                ("result", models.BinaryField(null=True)),
            ],
            options={"db_table": "rsq_inbox", "default_permissions": ()},
        ),
    ]
