"""ComfyUI itself: its releases, its trees and its model folders."""
