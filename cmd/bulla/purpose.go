package main

import (
	"net/http"

	"github.com/spf13/cobra"
)

// purposeHeader is the header in which a reader says what for.
const purposeHeader = "Bulla-Purpose"

// reads gives a command that reads entries the flag to say what for.
func (t *tool) reads(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&t.purpose, "purpose", "", "what you read for; the log records it with who reads what")
	return cmd
}

// state adds what the caller reads for to a request.
func (a *appliance) state(r *http.Request) {
	if a.purpose != "" {
		r.Header.Set(purposeHeader, a.purpose)
	}
}
