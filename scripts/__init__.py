"""What people run: `tern` (serve, chat, bench) and the supervisor behind it. May import anything."""
