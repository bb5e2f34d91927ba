// Package config reads the daemon's configuration: one plain struct, one table
// of keys.
//
// A value comes, each over the one before, from the default, the file, the files
// of conf.d beside it in the order of their names, the environment, and flags.
// Sources tells which it was. The table of keys in keys.go is the only place
// that knows a key: the decoder, the environment, the bounds, docs/configuration.md
// and "config show" are made from it.
//
// The package refuses what it does not understand: an unknown key, a value of
// another type, one out of bounds. It never puts a default in place of a value
// that is wrong. It reads files and writes none, and it does not look whether
// a folder, group or address exists on this host: who opens it will.
//
// A Config is a plain value, safe to copy; its slices are never changed after
// Load. All functions may be called from many goroutines.
package config
