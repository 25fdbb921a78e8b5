// Package durable makes and replaces whole files so that a crash leaves either the old bytes or the new ones, never a mixture,
// and so that a name that exists is never taken over.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Replace makes path hold exactly data with the given mode, on disk when it returns. A crash leaves the old file or the new one.
func Replace(path string, data []byte, mode fs.FileMode) error {
	tmp, err := write(path, data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("replacing %s: %w", path, err), os.Remove(tmp))
	}
	return SyncDir(filepath.Dir(path))
}

// Create makes a new file at path; it fails with fs.ErrExist, and changes nothing, when the name is taken.
func Create(path string, data []byte, mode fs.FileMode) error {
	tmp, err := write(path, data, mode)
	if err != nil {
		return err
	}
	return Publish(tmp, path)
}

// Publish gives the finished file tmp its name path, on disk when it returns. It fails with fs.ErrExist when the name is taken.
// tmp is gone afterwards either way; it must lie in the same directory and be synced.
func Publish(tmp, path string) error {
	err := os.Link(tmp, path) // unlike rename, link refuses an existing name
	if rmErr := os.Remove(tmp); err == nil {
		err = rmErr
	}
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in dir durable, where the system can.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" { // a directory cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("syncing directory %s: %w", dir, err)
	}
	return nil
}

// write leaves data in a synced temporary file beside path.
func write(path string, data []byte, mode fs.FileMode) (tmp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", fmt.Errorf("creating a file beside %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", f.Name(), err), os.Remove(f.Name()))
		}
	}()
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return "", err
	}
	if _, err := f.Write(data); err != nil {
		return "", err
	}
	return f.Name(), f.Sync()
}
