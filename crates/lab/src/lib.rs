//! Placeholder until its owner writes the chapter.
